"""A folder that answers studies on a machine without a network: wheels, models, and a check of both on arrival."""
