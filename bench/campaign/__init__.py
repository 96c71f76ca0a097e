"""Measures everything on a GPU that is at hand for minutes only, in two short calls.

    python -m bench.campaign smoke --out DIR --data-dir DIR                     # does it work? 150 seconds
    python -m bench.campaign campaign --out DIR --data-dir DIR --peers DIR      # what is it worth? 330 seconds
    python -m bench.campaign --device cpu --tiny                                # both in small: proves that they run
    python -m bench.campaign campaign --only sizes --out DIR --data-dir DIR     # kernels with other block sizes
    python -m bench.campaign campaign --only screen --seconds 900 --out DIR --data-dir DIR   # which changes are better?
    python -m bench.campaign campaign --only throughput --out DIR              # steps by batch size; without data
    python -m bench.campaign.table DIR                                          # what was measured, as Markdown

The smoke trains on the first 25,000 images and tests on the 5,000 after them, so that it needs only `part1.tar` and
`labels.npz` of the data, or the first three batches. Its figures compare with those of other smokes alone. It also runs
the tests of the kernels and those that need a GPU.

Every part is a process of its own: one that crashes, or hangs and is ended, leaves a record of it and the others whole.
Results are appended to DIR line by line as they are known, and called again with the same DIR a stage goes on where it
was: what is known is not measured again, what failed is. `FASTCIFAR_FAULT=segv:kernels,hang:steps,nocapture:speedrun94`
makes parts fail, for the tests.
"""
