"""The errors that a user can cause or must hear of. Standard library only: raising one never imports torch."""


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what is allowed. The command line exits with 2."""


class NonFiniteLoss(ArithmeticError):
    """Training met a NaN or infinite loss. The message names the step and the likely cause. The command line exits with
    3."""
