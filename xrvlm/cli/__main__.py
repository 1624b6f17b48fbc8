"""`python -m xrvlm.cli COMMAND`: how torchrun starts it."""

import sys

from xrvlm.cli.main import main

sys.exit(main())
