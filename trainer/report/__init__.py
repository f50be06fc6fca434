"""A report of answers that a person can check: heat maps, a card for each study, and one HTML file of them all."""
