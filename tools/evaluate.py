r"""Let students answer prompts, and measure and judge the answers.

    python tools/evaluate.py --students gad=runs/gad seqkd=runs/seqkd --prompts test.jsonl \
        --out runs/verdict

The same as ``megatron-gad evaluate``; docs/evaluation.md has more.
"""

import sys

from megatron_gad.cpu_seam import install_if_needed
from megatron_gad.evaluation.command import main

if __name__ == "__main__":
    install_if_needed()
    sys.exit(main(sys.argv[1:], program="tools/evaluate.py"))
