"""One command that measures everything on an accelerator which may be at hand for ten minutes only.

    python -m bench.campaign --budget 540 --out DIR [--only env,kernels,...] [--peers DIR] [--device cpu --tiny]

Each part writes a JSON line to DIR/<part>.jsonl as soon as a result is known; called again with the same DIR it goes on
where it was. A part that fails is recorded with its traceback and the next one goes on.
"""
