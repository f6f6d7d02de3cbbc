"""``python -m s2l_ext.cli`` is ``s2l``."""

import sys

from s2l_ext.cli import main

sys.exit(main())
