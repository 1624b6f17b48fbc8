"""`python -m xrvlm COMMAND`: how torchrun starts it, and where the script is not on the path."""

import sys

from xrvlm.cli.main import main

sys.exit(main())
