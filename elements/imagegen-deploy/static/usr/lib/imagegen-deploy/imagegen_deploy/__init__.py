"""The network boot of a node: its image to its disk, or live to its memory. Runs in the image's own initramfs."""
