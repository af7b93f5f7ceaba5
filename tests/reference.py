"""A slow, plain NumPy reading of the paper, to check the package against.

Source: P. Han, S. Wang, K. K. Leung, "Adaptive Gradient Sparsification for
Efficient Federated Learning: An Online Learning Approach", ICDCS 2020.

This file shares no code with the package. It is written in loops and sets, in
the order in which the paper says things; speed does not matter here.

Symbols, all after the paper:
  N, D      number of clients; number of model weights.
  a [N, D]  accumulated gradients (residual plus the new minibatch gradient).
  C_i, C    samples at client i (`counts`), and their sum.
  J_i, J    the coordinates client i sends up; those the server sends down.
  k         number of coordinates sent; theta a time, in units of one minibatch
            gradient (computing it at all clients in parallel takes 1).
"""

import fractions
import math
import operator
from typing import NamedTuple

import numpy as np

# ---------------------------------------------------------------------------
# Gradient sparsification.
# ---------------------------------------------------------------------------


class Selection(NamedTuple):
  """What one FAB-top-k selection gives; see `fab`.

  Attributes:
    mask: [D] bool, True on J, the coordinates sent down.
    client_mask: [N, D] bool, True where a coordinate is both in J and in J_i:
      what client i contributed, and what leaves its residual.
    aggregate: [D] float64, b, zero outside J. In the unit of a.
    residual: [N, D] dtype of a, what stays at the clients.
    sent: [N, D] dtype of a, what left them; `sent + residual` is a, exactly.
    kappa: the depth to which every client's entries are all in J.
  """

  mask: np.ndarray
  client_mask: np.ndarray
  aggregate: np.ndarray
  residual: np.ndarray
  sent: np.ndarray
  kappa: int


def largest(a_i, q):
  """The indices of the q entries of largest magnitude, in descending order.

  Ties go to the lower index. Zeros are entries like any other. Magnitudes are
  compared in float64, where every float32 is exact and no float32 denormal is
  denormal any more, so denormals stay distinct from zero and each other.

  Paper: Alg. 1, the set J_i, for q = k.

  Args:
    a_i: [D] one client's accumulated gradient; no NaN.
    q: how many; at most D are returned.

  Returns:
    A list of min(q, D) ints.
  """
  magnitude = np.abs(np.asarray(a_i).astype(np.float64))
  if np.isnan(magnitude).any():
    raise ValueError('a NaN has no place in an order of magnitudes')
  order = np.argsort(-magnitude, kind='stable')
  return [int(j) for j in order[:q]]


def union_at_depth(a, q):
  """The coordinates among the q largest of at least one client.

  Paper: the fairness-aware selection that Alg. 1 uses; union over i of J_i^q.

  Args:
    a: [N, D] accumulated gradients.
    q: depth, 0 to D.

  Returns:
    A set of ints.
  """
  union = set()
  for a_i in a:
    union |= set(largest(a_i, q))
  return union


def fab(a, counts, k):
  """Fairness-aware bidirectional top-k: one selection and aggregation.

  Paper: Alg. 1 with the fairness-aware selection of J (FAB-top-k). Two things
  the paper leaves open are settled here: a coordinate that is the
  (kappa + 1)-th entry of several clients is ranked by its largest magnitude
  there, and equal magnitudes go by the lower index.

  Args:
    a: [N, D] float, accumulated gradients.
    counts: [N] samples per client, C_i.
    k: number of coordinates, an integer of at least 0; more than D means D.

  Returns:
    A `Selection`.
  """
  a = np.asarray(a)
  counts = np.asarray(counts, np.float64)
  clients, dim = a.shape
  k = min(operator.index(k), dim)
  if k < 0:
    raise ValueError(f'k must not be negative, is {k}')

  # Each client sends its own k largest up.
  uplink = [set(largest(a_i, k)) for a_i in a]

  # The deepest kappa whose union still fits. The union at depth q has at
  # least q members, so kappa cannot exceed k.
  kappa = 0
  while kappa < k and len(union_at_depth(a, kappa + 1)) <= k:
    kappa += 1
  chosen = union_at_depth(a, kappa)

  # Fill up with the clients' (kappa + 1)-th entries, largest first.
  candidates = {}  # Coordinate -> its largest magnitude as such an entry.
  if kappa < dim:
    for a_i in a:
      j = largest(a_i, kappa + 1)[-1]
      if j not in chosen:
        magnitude = abs(float(a_i[j]))
        candidates[j] = max(magnitude, candidates.get(j, 0.0))
  ranked = sorted(candidates, key=lambda j: (-candidates[j], j))
  chosen |= set(ranked[:k - len(chosen)])
  assert len(chosen) == k

  # Aggregate. The divisor is C, whoever sent j.
  mask = np.zeros(dim, bool)
  client_mask = np.zeros((clients, dim), bool)
  aggregate = np.zeros(dim, np.float64)
  residual = a.copy()
  sent = np.zeros_like(a)
  for j in sorted(chosen):
    mask[j] = True
    for i in range(clients):
      if j in uplink[i]:
        client_mask[i, j] = True
        aggregate[j] += counts[i] * float(a[i, j])
        sent[i, j] = a[i, j]
        residual[i, j] = 0
    aggregate[j] /= counts.sum()
  return Selection(mask, client_mask, aggregate, residual, sent, kappa)


def gs_round(gradients, residual, counts, params, k, learning_rate):
  """One round of gradient sparsification with FAB-top-k.

  Paper: Alg. 1. The sum in step 1 is taken in the dtype of the arguments (for
  float32 it is then the same as anybody's float32 sum, bit for bit, so the
  selection is too); the aggregate and the new weights are float64.

  Args:
    gradients: [N, D] minibatch gradients at `params`.
    residual: [N, D] accumulated gradients from before; zero at the start.
    counts: [N] samples per client, C_i.
    params: [D] weights that all the clients hold, w(m - 1).
    k: number of coordinates, an integer.
    learning_rate: eta.

  Returns:
    (params [D] float64, residual [N, D] dtype of gradients + residual): w(m),
    and the accumulated gradients that the next round starts from.
  """
  # 1. Every client adds its gradient to what it has not sent.
  a = np.asarray(gradients) + np.asarray(residual)
  # 2., 3. Uplink, selection, aggregate, downlink.
  selection = fab(a, counts, k)
  # 4. Everybody takes the same step.
  step = float(learning_rate) * selection.aggregate
  params = np.asarray(params).astype(np.float64) - step
  # 5. What was used leaves the accumulated gradients.
  return params, selection.residual


# ---------------------------------------------------------------------------
# Time, and the estimate of the derivative's sign.
# ---------------------------------------------------------------------------


def round_time(k_up, k_down, dim, beta, compute=1.0):
  """Normalised time of one round with sparse exchange, theta.

  A sparse element costs two values, its index and its value; a dense exchange
  moves D values up and D down, and takes beta.

  Paper: the normalised time of the experiments.

  Args:
    k_up: elements that a client sends up.
    k_down: elements that the server sends down.
    dim: D.
    beta: time of a dense exchange, in minibatch gradients.
    compute: time of the computation, in minibatch gradients.

  Returns:
    A float, in minibatch gradients.
  """
  values_sparse = 2 * k_up + 2 * k_down
  values_dense = 2 * dim
  return float(compute + beta * values_sparse / values_dense)


def estimate(
    theta, theta_probe, loss_before, loss_after, loss_probe, k, k_probe
):
  """The estimated sign of the derivative of the round's cost in k.

  Paper: Sec. IV, estimating the sign of the derivative. The probe's time is
  scaled to what it would need for the loss decrease that k gave.

  Args:
    theta: time of this round with k elements, in minibatch gradients.
    theta_probe: the same with k_probe elements.
    loss_before: mean one-sample loss at w(m - 1), weighted by data size.
    loss_after: the same, of the same samples, at w(m).
    loss_probe: the same at w'(m), the weights that k_probe would have given.
    k: real, number of elements.
    k_probe: real, the probe's number of elements, k'.

  Returns:
    (cost_probe, slope, sign, valid): time that k_probe would need for the loss
    decrease of k; difference quotient of the cost, in time per element; its
    sign, -1, 0 or 1; whether there is an estimate. There is none when a loss
    difference is not positive or when anything is not finite (a quotient with
    k = k_probe included); then cost_probe and slope are NaN and sign is 0. A
    slope of exactly 0 is an estimate: sign 0, valid True.
  """
  nothing = (math.nan, math.nan, 0, False)
  given = (
      theta, theta_probe, loss_before, loss_after, loss_probe, k, k_probe
  )
  if not all(math.isfinite(x) for x in given):
    return nothing
  theta, theta_probe, loss_before, loss_after, loss_probe, k, k_probe = (
      float(x) for x in given
  )

  decrease = loss_before - loss_after
  decrease_probe = loss_before - loss_probe
  if decrease <= 0 or decrease_probe <= 0 or k == k_probe:
    return nothing

  cost_probe = theta_probe * decrease / decrease_probe
  slope = (theta - cost_probe) / (k - k_probe)
  if not (math.isfinite(cost_probe) and math.isfinite(slope)):
    return nothing
  sign = 1 if slope > 0 else -1 if slope < 0 else 0
  return cost_probe, slope, sign, True


# ---------------------------------------------------------------------------
# Online learning of k.
# ---------------------------------------------------------------------------


def _project(k, low, high):
  """The point of [low, high] nearest to k (P_K of Alg. 2); real numbers."""
  return min(max(k, low), high)


def _probe(k, delta, k_min):
  """The probe's number of elements, k'; real.

  Paper: Sec. IV, k' = k - delta / 2. The bounds are the authors' code's: at
  least 0.1 k_min (here also at least 1), then at most k - 1; should the two
  cross, which takes a k below 2, then k - 1 it is.

  Args:
    k: real, number of elements of the round.
    delta: real, step of the round, in elements.
    k_min: real, lower end of the search interval.
  """
  return min(max(k - delta / 2, max(1.0, 0.1 * k_min)), k - 1)


def _check(k_init, k_min, k_max):
  """Refuses a start outside of [k_min, k_max]; real numbers, in elements."""
  if not k_min <= k_init <= k_max:
    raise ValueError(f'{k_init} is not in [{k_min}, {k_max}]')


class SignDescent:
  """Online descent on the derivative's sign over one fixed interval.

  Paper: Alg. 2.

  Attributes:
    k: real, number of elements of the round to come.
    m: that round's number, from 1.
    rises: the rounds after which k rose for want of a sign.
  """

  def __init__(self, k_init, k_min, k_max, stuck_rounds=None):
    """Starts at round 1 with k_init.

    Args:
      k_init: real, in [k_min, k_max], in elements.
      k_min: real, in elements.
      k_max: real, in elements.
      stuck_rounds: the authors' code's addition, off with None: after so many
        rounds in a row without an estimate k rises by one step, and they are
        counted from 0 again.
    """
    _check(k_init, k_min, k_max)
    self.k = float(k_init)
    self.k_min = float(k_min)
    self.k_max = float(k_max)
    self.m = 1
    self.stuck_rounds = stuck_rounds
    self.without = 0  # Rounds in a row without an estimate.
    self.rises = []

  def delta(self):
    """Step of the round to come, B / sqrt(2 m); real, in elements (Alg. 2)."""
    return (self.k_max - self.k_min) / math.sqrt(2 * self.m)

  def probe(self):
    """k' of the round to come; real, in elements (Sec. IV). See `_probe`."""
    return _probe(self.k, self.delta(), self.k_min)

  def update(self, sign, valid):
    """Ends a round and gives the next round's k (Alg. 2).

    Args:
      sign: -1, 0 or 1, the estimated sign for the round that ends.
      valid: whether there is an estimate; without one k stays, but the round
        counts.

    Returns:
      The new k; real, in elements.
    """
    self.without = 0 if valid else self.without + 1
    if self.without == self.stuck_rounds:
      sign, valid, self.without = -1, True, 0
      self.rises.append(self.m)
    if valid:
      assert sign in (-1, 0, 1), sign
      step = self.delta() * float(sign)
      self.k = _project(self.moved(step), self.k_min, self.k_max)
    self.m += 1
    return self.k

  def moved(self, step):
    """k after a step down, before the projection; real, in elements."""
    return self.k - step


class SignLog(SignDescent):
  """The same on log k: a step is a share of k."""

  def delta(self):
    """Step of log k in the round to come; real."""
    return math.log(self.k_max / self.k_min) / math.sqrt(2 * self.m)

  def probe(self):
    """k' of the round to come; real, in elements. See `_probe`."""
    k_probe = math.exp(math.log(self.k) - self.delta() / 2)
    return min(max(k_probe, max(1.0, 0.1 * self.k_min)), self.k - 1)

  def moved(self, step):
    """k after a step down, before the projection."""
    return math.exp(math.log(self.k) - step)


class SignInterval:
  """Sign descent in instances, each over an interval learned from the last.

  Paper: Alg. 3.

  Attributes:
    k: real, number of elements of the round to come.
    k_low, k_high: real, the current instance's interval, in elements.
    restarts: the rounds, numbered from 1 over all instances, after which a new
      instance began.
    rises: those after which k rose for want of a sign.
  """

  def __init__(
      self, k_init, k_min, k_max, growth=1.5, window=20, stuck_rounds=None
  ):
    """Starts the first instance, on the whole interval.

    Args:
      k_init: real, in [k_min, k_max], in elements.
      k_min: real, lower end of the original interval, in elements.
      k_max: real, its upper end.
      growth: alpha, how far beyond what it saw a new interval reaches; a
        factor.
      window: M_u, how many updates with a sign are judged together.
      stuck_rounds: see `SignDescent`; a rise is judged with them.
    """
    _check(k_init, k_min, k_max)
    self.k = float(k_init)
    self.k_min = float(k_min)
    self.k_max = float(k_max)
    self.k_low = self.k_min
    self.k_high = self.k_max
    self.growth = float(growth)
    self.window = window
    self.restarts = []
    self.stuck_rounds = stuck_rounds
    self.without = 0  # Rounds in a row without an estimate.
    self.rises = []
    self.rounds = 0  # Rounds that have ended, in all instances.
    self.length = 0  # Rounds that have ended in this instance.
    self.previous_length = 0  # Rounds of the instance before this one.
    self.seen = []  # k after each update with a sign, in this window.

  def delta(self):
    """Step of the round to come, B / sqrt(2 (m - m0)) (Alg. 3).

    B is the current interval's length, m - m0 is 1 in the instance's first
    round. Real, in elements.
    """
    rounds_in_instance = self.length + 1
    return (self.k_high - self.k_low) / math.sqrt(2 * rounds_in_instance)

  def probe(self):
    """k' of the round to come; real, in elements (Sec. IV). See `_probe`.

    Its lower bound goes by the original k_min, not by the current interval.
    """
    return _probe(self.k, self.delta(), self.k_min)

  def update(self, sign, valid):
    """Ends a round and gives the next round's k (Alg. 3).

    Args:
      sign: -1, 0 or 1, the estimated sign for the round that ends.
      valid: whether there is an estimate; without one k stays and the window
        gets no entry, but the round counts in m - m0. An estimate of 0 does
        enter the window.

    Returns:
      The new k; real, in elements.
    """
    delta = self.delta()
    self.rounds += 1
    self.length += 1
    self.without = 0 if valid else self.without + 1
    if self.without == self.stuck_rounds:
      sign, valid, self.without = -1, True, 0
      self.rises.append(self.rounds)
    if valid:
      assert sign in (-1, 0, 1), sign
      self.k = _project(
          self.k - delta * float(sign), self.k_low, self.k_high
      )
      self.seen.append(self.k)
      if len(self.seen) == self.window:
        self._judge()
        self.seen = []
    return self.k

  def _judge(self):
    """Begins a new instance if the full window asks for one (Alg. 3)."""
    low = max(min(self.seen) / self.growth, self.k_min)
    high = min(max(self.seen) * self.growth, self.k_max)
    b = self.k_high - self.k_low
    b_new = high - low
    small_enough = 0 < b_new <= (math.sqrt(2) - 1) * b
    long_enough = self.length >= self.previous_length
    if small_enough and long_enough:
      self.k_low = low
      self.k_high = high
      self.previous_length = self.length
      self.length = 0
      self.restarts.append(self.rounds)


class ValueDescent:
  """Online descent on the derivative's value over one fixed interval.

  Paper: the value-based descent that the experiments compare with.

  Attributes:
    k: real, number of elements of the round to come.
    m: that round's number, from 1.
  """

  def __init__(self, k_init, k_min, k_max):
    """Starts at round 1 with k_init, in [k_min, k_max]; all real, elements."""
    _check(k_init, k_min, k_max)
    self.k = float(k_init)
    self.k_min = float(k_min)
    self.k_max = float(k_max)
    self.m = 1

  def probe(self):
    """k' of the round to come; real, in elements. See `_probe`."""
    b = self.k_max - self.k_min
    return _probe(self.k, b / math.sqrt(2 * self.m), self.k_min)

  def update(self, slope, valid):
    """Ends a round and gives the next round's k.

    Args:
      slope: the estimated derivative, in time per element; see `estimate`.
      valid: whether there is an estimate; without one k stays, but the round
        counts.

    Returns:
      The new k; real, in elements.
    """
    if valid:
      delta = (self.k_max - self.k_min) / math.sqrt(2 * self.m)
      self.k = _project(self.k - delta * slope, self.k_min, self.k_max)
    self.m += 1
    return self.k


class Balance:
  """The k at which its share of time and the lag it leaves are in balance.

  Attributes:
    k: real, number of elements of the round to come.
    m: rounds done.
  """

  def __init__(self, k_init, k_min, k_max, num_rounds, budget=None):
    """Starts with k_init, in [k_min, k_max]; budget in units of time."""
    _check(k_init, k_min, k_max)
    self.k = float(k_init)
    self.k_min = float(k_min)
    self.k_max = float(k_max)
    self.num_rounds = num_rounds
    self.budget = math.inf if budget is None else budget
    self.m = 0

  def update(self, theta, theta_silent, elapsed, lag):
    """Ends a round and gives the next round's k.

    Args:
      theta: time of this round.
      theta_silent: what it would be without messages.
      elapsed: time of all rounds so far.
      lag: rounds that a gradient waits; negative if that is not known.
    """
    self.m += 1
    known = all(map(math.isfinite, (theta, theta_silent, elapsed, lag)))
    if not (known and theta > 0 and lag >= 0):
      return self.k
    left = max(self.budget - elapsed, 0.0) / theta
    all_rounds = min(self.num_rounds, self.m + left)
    share = (theta - theta_silent) / theta  # epsilon
    if share <= 0:
      self.k = self.k_max
    else:
      best = self.k * math.sqrt(lag / (share * all_rounds))
      self.k = _project(best, self.k_min, self.k_max)
    return self.k


class Replay:
  """A recorded sequence of k, its last for ever after; no paper's rule.

  Attributes:
    k: real, number of elements of the round to come.
  """

  def __init__(self, ks):
    """Starts at round 1 with the first of ks."""
    self.k = float(ks[0])
    self.rest = [float(k) for k in ks[1:]]

  def update(self):
    """Ends a round and gives the next round's k."""
    if self.rest:
      self.k = self.rest.pop(0)
    return self.k


def fall_per_time(loss_before, loss_after, time):
  """What a round gained, in loss per minibatch gradient; 0 if not finite."""
  given = [float(x) for x in (loss_before, loss_after, time)]
  if not all(math.isfinite(x) for x in given) or given[2] == 0:
    return 0.0
  return (given[0] - given[1]) / given[2]


class Exp3:
  """Exponential weights for exploration and exploitation, over integer k.

  Auer, Cesa-Bianchi, Freund, Schapire, "The nonstochastic multiarmed bandit
  problem", 2002: EXP3, and its gamma for a game of known length. Who uses it
  draws the arms.

  Attributes:
    arms: list of ints, elements, ascending.
    gamma: share of uniform exploration.
    log_weights: one real per arm; its level means nothing.
  """

  def __init__(self, k_min, k_max, horizon, num_arms=None):
    """All arms alike.

    Args:
      k_min: real, in elements; no arm is below it.
      k_max: real, in elements; no arm is above it.
      horizon: T, rounds.
      num_arms: how many integers, spaced evenly; None means each of them.
    """
    low, high = math.ceil(k_min), math.floor(k_max)
    self.arms = list(range(low, high + 1))
    if num_arms == 1:
      self.arms = [low]
    elif num_arms is not None:
      half = fractions.Fraction(1, 2)
      gap = fractions.Fraction(high - low, num_arms - 1)
      places = {math.floor(low + i * gap + half) for i in range(num_arms)}
      self.arms = sorted(places)
    count = len(self.arms)
    self.gamma = min(
        1.0,
        math.sqrt(count * math.log(count) / ((math.e - 1) * horizon)),
    )
    self.log_weights = [0.0] * count
    self.best = 0.0  # The largest fall per time seen.

  def probabilities(self):
    """A list: what each arm of the round to come is drawn with."""
    count = len(self.arms)
    top = max(self.log_weights)
    weights = [math.exp(w - top) for w in self.log_weights]
    total = math.fsum(weights)
    return [(1 - self.gamma) * w / total + self.gamma / count for w in weights]

  def update(self, k, loss_before, loss_after, time):
    """Ends a round that played the arm k; losses, and time, of that round."""
    gain = fall_per_time(loss_before, loss_after, time)
    reward = 0.0
    if gain > 0:
      self.best = max(self.best, gain)
      reward = gain / self.best
    i = self.arms.index(k)
    estimate_i = reward / self.probabilities()[i]
    self.log_weights[i] += self.gamma * estimate_i / len(self.arms)


class Bandit:
  """Descent on k without a gradient: one cost a round, at a random side.

  Flaxman, Kalai, McMahan, "Online convex optimization in the bandit setting",
  2005, in one dimension, on [k_min, k_max] scaled to [-1, 1]. Who uses it
  draws the sides.

  Attributes:
    x: real in [-1, 1], the point that moves.
  """

  def __init__(self, k_init, k_min, k_max, horizon, radius=None, step=None):
    """Starts as near to k_init as leaves room for the radius.

    Args:
      k_init: real, in elements.
      k_min: real, in elements.
      k_max: real, in elements.
      horizon: T, rounds.
      radius: delta; None means T^(-1/4); at most 1.
      step: eta, on the gradient's estimate; None means T^(-3/4).
    """
    _check(k_init, k_min, k_max)
    self.k_min = float(k_min)
    self.k_max = float(k_max)
    self.delta = min(1.0, horizon ** (-1 / 4) if radius is None else radius)
    self.eta = horizon ** (-3 / 4) if step is None else step
    self.most = 0.0  # The largest |fall per time| seen.
    self.x = 0.0
    if k_max > k_min:
      self.x = 2 * (k_init - k_min) / (k_max - k_min) - 1
    self.x = _project(self.x, self.delta - 1, 1 - self.delta)

  def play(self, u):
    """The k at side u, -1 or 1; real, in elements."""
    share = (self.x + self.delta * u + 1) / 2  # From 0 at k_min to 1 at k_max.
    return self.k_min + share * (self.k_max - self.k_min)

  def update(self, u, loss_before, loss_after, time):
    """Ends a round that played side u; losses, and time, of that round."""
    gain = fall_per_time(loss_before, loss_after, time)
    if gain:
      self.most = max(self.most, abs(gain))
      cost = -gain / self.most
      gradient = cost / self.delta * u
      self.x = _project(
          self.x - self.eta * gradient, self.delta - 1, 1 - self.delta
      )
