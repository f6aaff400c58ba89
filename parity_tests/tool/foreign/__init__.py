"""Parity of anyone's model: records of any module on any framework, comparisons, environments, upgrades.

`recording` and what it imports need numpy and safetensors alone, so that they run in the environment of the model.
"""
