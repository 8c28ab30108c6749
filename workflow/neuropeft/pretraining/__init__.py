"""Networks that pretrain an encoder."""
