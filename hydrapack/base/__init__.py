"""The adapter-agnostic base program: a decoder whose LoRA weights are graph inputs."""
