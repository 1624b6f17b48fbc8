"""`python -m xrvlm COMMAND`: the command line where the script is not on the path."""

import sys

from xrvlm.cli.main import main

sys.exit(main())
