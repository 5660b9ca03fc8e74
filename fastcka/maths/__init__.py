"""The definitions: what fastcka computes, in float64 NumPy, slow and obvious.

Tests and documentation read this room; nothing that runs in production imports it. The derivations
stand in ``README.md`` beside the code.

- ``gram``: examples to a Gram matrix (linear, RBF)
- ``finish``: centring a Gram matrix, packing it into a vector, recovering it from the vector
- ``hsic``: two Gram matrices to one HSIC, by several routes that must agree
- ``cka``: HSICs to CKA, for two arrays, for batches and for a known population
- ``influence``: what a single example does to CKA
- ``measures``: what stands beside CKA: distances, neighbours, spectra
- ``attention``: how far attention heads look, and heads of which that is known
- ``receptive_field``: on which pixels the centre of a map depends, and closed forms of it
- ``skip_connections``: how much a branch adds to what it is added to, and in which direction
- ``ridge``: the few-shot probe, and what a probe can know
- ``localisation``: how far a token resembles its own patch of the image
"""
