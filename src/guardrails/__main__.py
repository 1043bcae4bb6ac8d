"""`python -m guardrails` is the command `guardrails`."""

import sys

from guardrails.ops.cli import main

sys.exit(main())
