"""The pipeline by which a release and a wheel are tried: the training of a tiny network, and what it makes of pictures."""

TEXT = """
name: toy
tables:
  images: {{ stage: ingest, with: {{ {dataset}, size: 32 }} }}
  autoencoder:
    stage: train_autoencoder
    from: [images]
    where: split = 'train'
    with:
      config: {{ block_out_channels: [8, 16, 16], layers_per_block: 1, norm_num_groups: 4 }}
      training: {{ steps: 2, batch_size: 2, lr: 1.0e-3, log_every: 1 }}
  latents: {{ stage: encode_latents, from: [images, autoencoder] }}
"""


def pipeline(dataset):
    """Returns the text of the pipeline on a data set, which is described by parameters of `ingest`."""
    return TEXT.format(dataset=dataset)
