"""Images and the machines started from them: providers, the bake, the catalogue. Extras `fleet` (SSH) and `aws` (EC2)."""
