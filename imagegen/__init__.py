"""imagegen turns one cluster file into OpenStack Nova nodes that configure themselves."""

__version__ = "0.1.0"
