"""Attribution graphs: direct effects in a model whose attention, norms and active features are held fixed."""
