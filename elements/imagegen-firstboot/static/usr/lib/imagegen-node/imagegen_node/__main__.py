import sys

from imagegen_node.cli import main

sys.exit(main())
