"""Operations and bytes of a training, counted without training."""
