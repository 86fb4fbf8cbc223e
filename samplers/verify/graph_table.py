"""How often the walk of the confidence order comes through a set of positions."""

FREQUENCY: dict[int, float] = {(1 << n) - 1: 0.5**n for n in range(1, 13)}
