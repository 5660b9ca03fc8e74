import sys

from fastcka.cli import main

sys.exit(main())
