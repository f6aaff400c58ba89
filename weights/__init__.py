"""Any checkpoint of these models into any framework, without the framework."""

from triport.weights.commands.load import load_encoder, load_model, load_weights

__all__ = ["load_encoder", "load_model", "load_weights"]
