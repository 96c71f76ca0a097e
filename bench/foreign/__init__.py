"""Other people's tests, run on our classes from a path to their checkouts; none of their code is kept here.

`suites.py` lists them, each with an adapter, which puts our classes in place of theirs before pytest collects, and says
why what fails, fails. `python -m bench.foreign --checkouts DIR` runs them.
"""
