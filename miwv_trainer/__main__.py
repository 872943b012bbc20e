"""`python -m miwv_trainer` is the command `miwv`."""

import sys

from miwv_trainer.cli.main import main

sys.exit(main())
