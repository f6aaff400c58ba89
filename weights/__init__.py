"""Any checkpoint of these models into any framework, without the framework."""

from triport.weights.commands.load import licence, load_encoder, load_model, load_weights
from triport.weights.model.states import Selection

__all__ = ["Selection", "licence", "load_encoder", "load_model", "load_weights"]
