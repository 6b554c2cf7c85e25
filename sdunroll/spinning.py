"""How long compute threads that have nothing to do wait awake; to be settled before torch is imported."""

import os

# for GNU's OpenMP: a fraction of a millisecond, as long as the gaps between small operations
SPINS = 7000


def spin_briefly() -> None:
    """Let waiting threads spin for a moment, then sleep; a user's own OMP_WAIT_POLICY or GOMP_SPINCOUNT
    stands.

    Threads that spin for long slow each other down 10 to 100 times when another process is busy; threads
    that sleep at once make a step of small operations up to twice as long, since it takes time to wake
    them.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
