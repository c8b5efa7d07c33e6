"""What a prompt says against what a pretrained model knows."""
