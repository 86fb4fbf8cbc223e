"""How often the walk of the confidence order comes through a set of positions.

Sets as binary digits over the order of the last scores; measured on the bundled reasoning model, 12 calibration questions a
task, by `dlm_benches.samplers.drafts.calibrate`, which picks them greedily, the most useful first. Where a walk goes, a call's
own walks soon tell; the table is where it starts from.
"""

# fmt: off
FREQUENCY: dict[int, float] = {
    1: 0.9365, 3: 0.8738, 7: 0.8206, 15: 0.7722, 31: 0.7298, 63: 0.6929, 127: 0.6504, 255: 0.6131, 511: 0.5762,
    1023: 0.5417, 2047: 0.5040, 4095: 0.4694, 8191: 0.4369, 16383: 0.4052, 32767: 0.3750, 5: 0.0401, 2: 0.0349,
    11: 0.0349, 23: 0.0349, 47: 0.0349, 95: 0.0349, 191: 0.0349, 383: 0.0349, 1535: 0.0349, 767: 0.0349, 3071: 0.0349,
    12287: 0.0349, 6143: 0.0349, 24575: 0.0349, 319: 0.0143, 639: 0.0143, 79: 0.0135, 447: 0.0135, 159: 0.0135,
    223: 0.0131, 111: 0.0131, 1279: 0.0131, 2559: 0.0131, 20479: 0.0131, 19: 0.0123, 5119: 0.0123, 39: 0.0123,
    55: 0.0123, 10239: 0.0123, 895: 0.0123, 9: 0.0107, 27: 0.0107, 7167: 0.0107, 13: 0.0091, 3583: 0.0091,
    1791: 0.0091, 4: 0.0067, 6: 0.0067, 28671: 0.0067, 14335: 0.0067, 959: 0.0067, 59: 0.0044, 479: 0.0044,
    239: 0.0044, 29: 0.0040, 1919: 0.0040, 119: 0.0040, 35: 0.0040, 17: 0.0028,
}
# fmt: on
