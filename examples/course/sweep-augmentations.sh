#!/bin/sh
# The course's part 5.5: AlexNet with its base augmentation (flips and jitter), and with random crops or Gaussian blur
# too. Three trainings of 50 epochs; any flag of fastcifar sweep may follow.
exec fastcifar sweep --recipe alexnet --resize 70 \
    --vary augment.crop=0,4 --vary transforms.gaussian_blur.share=0,1 \
    --out runs/course-augmentations "$@"
