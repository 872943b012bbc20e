"""The only wing that knows ranks, DeepSpeed, FSDP and what is wrapped around a model."""
