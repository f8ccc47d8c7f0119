"""``python -m attent.tasks``: the command line."""

import sys

from attent.tasks.cli import main

sys.exit(main())
