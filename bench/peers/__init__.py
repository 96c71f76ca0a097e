"""Other people's programs, run beside ours from a path to a checkout; none of their code is kept here.

`Worker` is one program in a process of its own; `python -m bench.peers` sets them beside ours. `programs.py` lists
them, and the folder `equal` holds the recipes of ours that do the work of each one's training step.
"""

from bench.peers.worker import PeerError, Worker

__all__ = ["PeerError", "Worker"]
