"""Why each trick is done, in a sentence for its page; what it is stands at the field that declares it."""

WHY = {
    "residual": (
        "A branch beside the main path adds layers without making the path that gradients take longer: a deeper "
        "network that trains as well in as few epochs."
    ),
    "whitening": (
        "Neighboring pixels are alike, so that a first layer of random filters sees nearly the same everywhere. "
        "Filters that decorrelate patches and bring them to one scale let the next layer learn at a high rate at "
        "once."
    ),
    "layer-norm": (
        "It depends on no other image of the batch, and with weight decay it is said to keep networks able to "
        "learn when data change."
    ),
    "ghost-batch": (
        "Statistics of a few images are noisier than those of the whole batch, which regularizes; where batches "
        "are large they lose that noise."
    ),
    "frozen-scale": (
        "A convolution follows, which can scale as well: without the scales there are fewer parameters, and "
        "biases can have a rate of their own."
    ),
    "activation": (
        "A smooth nonlinearity has a gradient below zero too, so that no unit is dead, and a curvature that an "
        "optimizer can follow at high rates."
    ),
    "early-pool": "Pooling right after the convolution leaves norm and activation a quarter of the pixels to work on.",
    "final-max-pool": (
        "The largest response anywhere says whether something is there; the mean mixes it with all places where "
        "it is not."
    ),
    "dropout": (
        "Units that cannot rely on each other learn features that are of use by themselves, which regularizes "
        "large layers."
    ),
    "whitening-bias": (
        "The whitening's outputs are centered; a bias that is trained for a short while lets the nonlinearity "
        "after it split them at better places."
    ),
    "dirac": (
        "Filters that begin as the identity hand the image through a deep layer from the first step on, so that "
        "early steps are not spent on finding that."
    ),
    "head-scale": (
        "Logits of the size that the loss expects from the first step on; the classifier's own initialization "
        "would begin with other ones."
    ),
    "weight-decay": (
        "Small weights overfit less, and where a norm follows a convolution, its decay keeps the effective rate "
        "from falling as weights grow."
    ),
    "bias-rate": (
        "Batch norm's biases have small gradients beside those of the filters: at the same rate they would hardly"
        " have moved by the end of a short training."
    ),
    "muon": (
        "A filter bank's update is made nearly orthogonal, so that all its directions move by as much, those with"
        " small gradients too: fewer steps to the same loss."
    ),
    "polar-express": (
        "Other coefficients at each step of the iteration bring the update closer to orthogonal in as many steps."
    ),
    "normuon": (
        "Orthogonal updates still differ from row to row; a running mean of each row's size evens out how far "
        "neurons move."
    ),
    "weight-normalization": (
        "Filters that keep their length keep the rate at which they turn, which decay and growth would change in "
        "the course of a training."
    ),
    "early-batches": (
        "Small batches early take more steps in as many operations, and their noise does no harm while the rate "
        "is high."
    ),
    "label-smoothing": (
        "A target that is not quite certain keeps logits from growing without bound, which regularizes and calibrates."
    ),
    "l2-init": "A network near its fresh weights is still able to learn what comes later.",
    "crop": "The same image at another place is another one to the network: more data for nothing.",
    "flip": "The mirror image of an object is as likely: twice the data for nothing.",
    "alternating-flip": (
        "Random flips show some images the same way in two epochs in a row, which is half the news; turn and turn"
        " about none are."
    ),
    "flip-by-visit": (
        "Where images are left out of some epochs, the parity of the epoch no longer alternates what an image "
        "looks like; the count of its visits does."
    ),
    "cutout": "A network that cannot rely on one part of an object learns its other parts.",
    "jitter": (
        "Brightness and contrast say little about what is seen; a network that sees them vary does not rely on them."
    ),
    "early-crops": (
        "Early in a training coarse features are learned, which smaller images show as well, at a fraction of the"
        " operations."
    ),
    "early-resize": "A smaller image that shows the whole object keeps what a crop of that size cuts away.",
    "color_jitter": "Colors vary with the light; a network that sees them vary does not rely on them.",
    "grayscale": "A network that sometimes has no color learns shapes.",
    "rand_augment": "Many changes of one strength, with two numbers to tune in place of one for each.",
    "gaussian_blur": "A network that sometimes has no fine detail learns coarse features too.",
    "random_erasing": "A network that cannot rely on one part of an object learns its other parts.",
    "mixup": "Between two images the answer shall be between theirs, which smooths what the network learns.",
    "cutmix": "No pixel is wasted as by cutout: the patch shows another object, with its share in the label.",
    "lookahead": "The mean of where fast steps lead is closer to the valley's floor than where they are.",
    "ema": (
        "At a high rate weights wander about a minimum; their moving average is near it without a low rate's epochs."
    ),
    "hare-tortoise": (
        "A return to the moving average keeps the fast weights from leaving the region in which a network is "
        "still able to learn."
    ),
    "selection": (
        "Images that are learned already have small gradients: a pass over them costs as much and gains little."
    ),
    "average": "The mean of weights at the end of several epochs lies in a flatter place than each of them.",
    "redo": "Units that are never active take part in nothing; begun again, they can.",
    "continual-backprop": (
        "A small number of little-used units that begin again all the time keeps a network as able to learn as a "
        "fresh one."
    ),
    "tta": "The views of an image err in different ways; the mean of their logits errs less.",
}
