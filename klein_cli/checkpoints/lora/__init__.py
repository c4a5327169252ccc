"""Adapters (LoRA and its relatives): files of any trainer -> what they change of a transformer.

`keys` and `targets` read the names, `layers` the pairs and sizes, `alphas` the strengths, `bases`
what model they were trained for, `adapter` the whole file and how it fits a model: all from the
header, without torch. `deltas` and `changes` compute, while the model's weights arrive.
"""
