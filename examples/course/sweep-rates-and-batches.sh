#!/bin/sh
# The course's parts 5.2 and 5.3: AlexNet at five rates and five batch sizes, one at a time around 3e-4 and 256.
# Nine trainings of 50 epochs; any flag of fastcifar sweep may follow, such as --runs 3, or --epochs 1 for a look.
exec fastcifar sweep --recipe alexnet --resize 70 \
    --vary optimizer.lr=1e-5,1e-4,3e-4,1e-3,3e-3 --vary batch_size=23,128,256,2048,5000 \
    --out runs/course-rates-and-batches "$@"
