import sys

from dlops.cli import main

sys.exit(main())
