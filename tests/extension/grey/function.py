import torch

from grey import GreyConfig


def grey(images: torch.Tensor, numbers: torch.Tensor, config: GreyConfig) -> torch.Tensor:
    """Mix each chosen image with the mean of its channels."""
    chosen, part = numbers[:, :, None, None, None].unbind(1)
    weight = (chosen < config.share) * part * config.most
    return images + weight.to(images) * (images.mean(1, keepdim=True) - images)
