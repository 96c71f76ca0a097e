"""Other people's programs, run beside ours from a path to a checkout; none of their code is kept here."""
