"""Users of whom this machine knows nothing."""

ALICE, MALLORY = 12345, 12346
