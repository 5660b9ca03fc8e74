"""Networks and images in, results of experiments out: what is needed is measured, and kept.

`study` runs, `needs` can be asked for, `result` and `claims` come out; the passes over the images
are `similarity` (CKA, and what is seen of single images), `probing` and `gradients`.
"""
