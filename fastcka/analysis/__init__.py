"""What a network does with images, beside CKA: attention, receptive fields, branches, probes.

Of torch alone, on any device; the definitions in float64 are in ``fastcka.maths``.
"""
