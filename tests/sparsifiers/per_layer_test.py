"""Methods layer by layer: each layer's share of k."""

import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from agsfl.sparsifiers import methods, plain
from agsfl.sparsifiers.per_layer import per_layer, share, shares
from tests import reference

SIZES = (7, 1, 32)  # of layers; 40 in all


class PerLayerTest(absltest.TestCase):

  @hypothesis.settings(max_examples=60, deadline=None)
  @hypothesis.given(st.integers(0, 40), st.integers(0, 2**32 - 1))
  def test_is_the_method_on_each_layer(self, k, seed):
    """Its share of one u for all layers: floor(k c / D + u), u = v / D."""
    rng = np.random.default_rng(seed)
    accumulated = rng.normal(size=(3, 40)).astype(np.float32)
    counts = np.array([2, 1, 5])
    weights = jnp.asarray(counts / 8, jnp.float32)
    split, mask = jax.device_get(
        _by_layer(
            jax.random.key(seed),
            jnp.asarray(accumulated),
            weights,
            jnp.int32(k),
        )
    )
    ends = np.cumsum((0, *SIZES))
    got = [mask[start:end].sum() for start, end in itertools.pairwise(ends)]
    allowed = [np.diff((k * ends + v) // 40).tolist() for v in range(40)]
    self.assertIn(got, allowed)
    for own, (start, end) in zip(got, itertools.pairwise(ends), strict=True):
      want = reference.fab(accumulated[:, start:end], counts, own)
      np.testing.assert_array_equal(mask[start:end], want.mask)
      np.testing.assert_array_equal(
          split.residual[:, start:end], want.residual
      )

  def test_every_layer_has_its_turns(self):
    """Law: k D_l / D elements on average, k in all, 0 to D_l; at fixed k."""
    sizes = 20, 1, 0, 300, 7, 72  # 400
    keys = jax.random.split(jax.random.key(0), 2000)
    for k in (0, 1, 50, 399, 400):
      got = np.asarray(_shares(keys, jnp.int32(k), sizes))  # [4000, 6]
      np.testing.assert_array_equal(got.sum(1), k)
      self.assertTrue(np.all((got >= 0) & (got <= sizes)))
      exact = k * np.array(sizes) / 400
      # Law: a whole number next to the mean.
      np.testing.assert_array_less(np.abs(got - exact), 1)
      np.testing.assert_allclose(got.mean(0), exact, atol=6 * 0.5 / 2000**0.5)

  def test_shares_are_exact_for_large_models(self):
    """Where k D needs 48 bits: all of D, and shares that Python agrees with."""
    rng = np.random.default_rng(0)
    for whole in (5, 444_062, 10**8, 2**30 - 1):
      for part in (*rng.integers(0, whole, 2).tolist(), whole):
        of = lambda k, v, part=part, whole=whole: share(k, part, whole, v)
        k, v = rng.integers(0, whole, (2, 50))
        # The ends too: all of it, with the least and the largest offset.
        k, v = np.append(k, [whole, whole]), np.append(v, [0, whole - 1])
        got = jax.jit(jax.vmap(of))(np.int32(k), np.uint32(v))
        want = (k.astype(object) * part + v) // whole
        np.testing.assert_array_equal(got, want)


@functools.partial(jax.jit, static_argnums=2)
def _shares(keys, k, sizes):
  of_key = lambda key: jnp.stack(shares(key, k, sizes))
  return jax.vmap(of_key)(keys)


@jax.jit
def _by_layer(key, accumulated, weights, k):
  sparsifier = per_layer(methods.fab_top_k(plain.fab), SIZES)
  state = sparsifier.init(3, 40)
  selection, _ = sparsifier.select(key, accumulated, weights, k, state)
  return jax.vmap(sparsifier.split, (0, None, 0))(
      accumulated, selection.mask, selection.clients
  ), selection.mask


if __name__ == "__main__":
  absltest.main()
