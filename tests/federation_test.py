"""Rounds of few of many clients, against NumPy and by their laws."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from agsfl import clocks, controllers, sparsifiers
from agsfl.asynchrony import buffered
from agsfl.attendance import SAMPLINGS, drops_out, sampled
from agsfl.clocks import Availability, Message, Speeds
from agsfl.delivery import Delivery
from agsfl.feedback import Feedback
from agsfl.sparsifiers import METHODS, plain
from agsfl.training.optimizers import server_of
from agsfl.types import KController, KProposal
from tests import federation_oracle as oracle
from tests import small_rounds
from tests.linear import BATCH, DIM, one_sample_each, weighted
from tests.small_rounds import BETA, RATE, build

COUNTS = (3, 1, 4, 1, 5, 2, 6)
N = len(COUNTS)
KS = (6.0, 11.0, 3.0, 8.0, 24.0, 1.0, 7.0, 5.0)
ALL_DAY = Availability(
    np.zeros((N, 1), np.float32),
    np.full((N, 1), 100, np.float32),
    np.float32(100),
)
SPEEDS = Speeds(
    seconds_per_sample=np.float32([0.1, 0.5, 0.2, 0.3, 0.05, 1.1, 0.7]),
    up=np.float32([90, 20, 33, 70, 41, 15, 55]),
    down=np.float32([300, 120, 201, 99, 150, 80, 330]),
    latency=np.float32([0.1, 0.0, 0.3, 0.2, 0.05, 0.7, 0.0]),
)
ALIKE = Speeds(*(np.full(N, x, np.float32) for x in (0.25, 64, 128, 0.5)))


@functools.cache
def federation():
  return oracle.Federation(
      *one_sample_each(num_clients=N), np.array(COUNTS), RATE
  )


def clients_of(speeds=SPEEDS, availability=None, counts=COUNTS):
  data = weighted(*one_sample_each(num_clients=N), counts)
  return data.replace(speeds=speeds, availability=availability)


def some(number=3, sampling="uniform"):
  return sampled(SAMPLINGS[sampling], number, number, N, DIM)


def queue(at_work, arrivals, max_staleness=9, sampling="round_robin"):
  return buffered(
      SAMPLINGS[sampling], at_work, arrivals, arrivals, max_staleness, N, DIM
  )


class Volumes:
  """What the server has sent, and when a client last had all of it."""

  def __init__(self):
    self.sent = [0.0]
    self.has = dict.fromkeys(range(N), 0)

  def behind(self, client, most=DIM):
    """Numbers that the client has missed before this round."""
    return min(most, sum(self.sent[self.has[client] + 1 :]))

  def send(self, volume, clients):
    self.sent.append(volume)
    self.has |= dict.fromkeys(clients, len(self.sent) - 1)


def seconds_until_sent(client, k, behind, value_bits=32):
  """Download of what it missed, computation, upload of k indices, values."""
  _, _, down, latency = own = [float(x[client]) for x in SPEEDS]
  return (
      4 * behind / down
      + latency
      + BATCH * own[0]
      + k * (4 + value_bits / 8) / own[1]
  )


def download(client, volume):
  return float(SPEEDS.latency[client] + 4 * volume / SPEEDS.down[client])


KINDS = {
    "few": {},
    "dropout_decay": {"dropout": 0.4, "decay": 0.5},
    "deadline_preview": {"deadline": 5.0, "preview": 0.85},
    "stateless": {"stateless": True, "dropout": 0.4},
    "bits": {"value_bits": 16},
    "by_speed": {"by_speed": True},
    "all": {
        "dropout": 0.2, "deadline": 9.0, "decay": 0.9, "preview": 0.5,
        "value_bits": 16, "by_speed": True,
    },
}


def built(
    attendance,
    ks=KS,
    *,
    decay=1.0,
    preview=0.0,
    stateless=False,
    dropout=0.0,
    deadline=np.inf,
    value_bits=32,
    by_speed=False,
    **parts,
):
  """A round of these settings, with seconds, whose k are `ks`."""
  return build(
      parts.pop("controller", None) or controllers.replay(ks),
      parts.pop("sparsifier", None) or sparsifiers.fab_top_k(plain.fab),
      learning_rate=RATE,
      attendance=attendance,
      feedback=Feedback(decay, preview, stateless),
      delivery=Delivery(
          Message(value_bits=value_bits), True, deadline, by_speed, dropout
      ),
      **parts,
  )


def watching(ks):
  """Plays these k; its state has the lag and the silent time of the round."""
  ks = jnp.float32(ks)
  propose = lambda m: KProposal(ks[m], ks[m])
  return KController(
      init=lambda key: (propose(0), (jnp.int32(1), jnp.zeros(2))),
      update=lambda key, observed, state: (
          propose(state[0]),
          (
              jnp.minimum(state[0] + 1, len(ks) - 1),
              jnp.stack([observed.lag, observed.time_silent]),
          ),
      ),
      observes=False,
      probes=False,
      measures_lag=True,
  )


def lag_of(want, heard):
  """What waits by what leaves, at those whose message arrives."""
  waiting = sent = 0.0
  for i in heard:
    left = np.sum(np.square(want.residual[i], dtype=float))
    waiting += COUNTS[i] * left
    sent += COUNTS[i] * (np.sum(np.square(want.accumulated[i])) - left)
  some = any(want.contributed.values())
  return N / len(heard) * waiting / sent if some else -1.0


def jitted(step):
  """Such small rounds compile for longer than they run."""
  return jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})


play = functools.partial(small_rounds.play, jit=jitted)


class SynchronousTest(parameterized.TestCase):

  @parameterized.named_parameters(KINDS.items())
  def test_as_in_numpy(self, settings):
    """Weights, residuals, shares and seconds of each round."""
    has_lag = "stateless" not in settings
    simulated = built(
        some(), controller=watching(KS) if has_lag else None, **settings
    )
    states, infos = play(simulated, clients_of(), len(KS))
    remedy = oracle.Remedy(*(
        settings.get(name, default)
        for name, default in oracle.Remedy._field_defaults.items()
    ))
    bits = settings.get("value_bits", 32)
    deadline = settings.get("deadline", np.inf)
    last, volumes, seconds, elapsed = [0] * N, Volumes(), 0.0, 0.0
    b, outcomes = np.zeros(DIM), set()
    for m, (before, after, info, k) in enumerate(
        zip(states, states[1:], infos, KS, strict=False), 1
    ):
      # Who computes, and when the messages come.
      clients = [int(client) for client in info.clients]
      lost = drops_out(
          states[0].key, m, info.clients, settings.get("dropout", 0.0)
      )
      begun = [i for i, out in zip(clients, lost, strict=True) if not out]
      # Stateless clients need all weights and the last aggregate.
      most = (1 + remedy.stateless) * DIM
      behind = {i: volumes.behind(i, most) for i in clients}
      k_of = None
      if "by_speed" in settings:
        places = np.array(clients)
        own = clocks.k_together(
            Speeds(*(x[places] for x in SPEEDS)), jnp.int32(BATCH),
            jnp.int32(k), ~lost, 4 + bits / 8, DIM,
            4 * np.float32(list(behind.values())) / SPEEDS.down[places],
        )
        k_of = dict(zip(clients, own.tolist(), strict=True))
        if begun:
          self.assertEqual(sum(k_of.values()), k * len(begun))
          self.assertGreaterEqual(
              min(k_of[i] for i in begun), k // len(begun)
          )
      arrivals = {
          i: seconds_until_sent(
              i, k if k_of is None else k_of[i], behind[i], bits
          )
          for i in begun
      }
      heard = [i for i in begun if arrivals[i] <= deadline]
      outcomes.add((len(clients) - len(begun), len(begun) - len(heard)))

      # The round.
      want = oracle.play_round(
          federation(),
          before.params,
          np.zeros((N, DIM)) if remedy.stateless else before.residual,
          clients,
          heard,
          int(k),
          remedy=remedy,
          waited={i: m - last[i] for i in clients},
          last_aggregate=b.astype(np.float32),
          coded=oracle.bfloat16 if bits == 16 else np.asarray,
          k_of=k_of,
      )
      np.testing.assert_allclose(after.params, want.params, atol=1e-5)
      contributed = [want.contributed[i] for i in clients]
      np.testing.assert_array_equal(info.contributed, contributed)
      self.assertEqual((info.heard, info.lost), (len(heard), sum(lost)))
      if remedy.stateless:
        self.assertEmpty(jax.tree.leaves(after.residual))
        b = np.float64(after.feedback)
        if heard:
          np.testing.assert_allclose(b, want.aggregate, atol=1e-5)
      else:
        # Those who did not take part are left alone, bit for bit.
        np.testing.assert_allclose(after.residual, want.residual, atol=1e-5)
        others = np.setdiff1d(range(N), clients)
        np.testing.assert_array_equal(
            after.residual[others], before.residual[others]
        )

      # What a controller may see: the lag, and the time without messages.
      if has_lag:
        lag, silent = after.controller[1]
        np.testing.assert_allclose(lag, lag_of(want, heard), rtol=1e-3)
        ends = [seconds_until_sent(i, 0, 0) for i in begun]
        ways = [download(i, 0) for i in begun]
        want_silent = 60.0
        if begun:
          want_silent = min(max(ends), deadline) + max(ways)
        np.testing.assert_allclose(silent, want_silent, rtol=1e-3)

      # Time: until the last message or the deadline, then the way back.
      duration = 60.0
      if begun:
        duration = min(max(arrivals.values()), deadline) + max(
            download(i, info.volume_down) for i in begun
        )
      seconds += duration
      np.testing.assert_allclose(info.timing.duration, duration, rtol=1e-3)
      np.testing.assert_allclose(info.timing.seconds, seconds, rtol=1e-3)
      self.assertEqual(info.timing.late, len(begun) - len(heard))
      slowest = max(begun, key=arrivals.get, default=-1)
      self.assertEqual(info.timing.slowest, slowest)
      elapsed += 1 + BETA / (2 * DIM) * (
          info.volume_up + info.volume_down + max(behind.values())
      )
      np.testing.assert_allclose(info.elapsed, elapsed, rtol=1e-3)
      volumes.send(float(info.volume_down), clients)
      for client in clients:
        last[client] = m
    if "dropout" in settings or "deadline" in settings:
      self.assertGreater(len(outcomes), 1, "the script must not be one-sided")

  @parameterized.parameters({}, {"value_bits": 16}, {"by_speed": True})
  def test_nothing_is_lost(self, **settings):
    """Law: what one client sent + its residual is what it had, bit for bit.

    From weights of 0 the step of 1 leads to minus what was sent. A client that
    drops out has all in its residual.
    """
    residual = np.random.default_rng(0).normal(size=(N, DIM))
    ends = []
    for dropout in (0.0, 1.0):
      simulated = built(
          some(1), server=optax.sgd(1.0), dropout=dropout, **settings
      )
      state = simulated.init(jax.random.key(0), N)
      state = state.replace(
          params=jnp.zeros(DIM), residual=jnp.float32(residual)
      )
      state, _ = jitted(simulated.step)(clients_of(), state)
      ends.append(jax.device_get(state))
    one, dropped = ends
    self.assertEqual(np.count_nonzero(one.params), KS[0])
    self.assertFalse(np.any(dropped.params))
    own = np.any(one.residual != jnp.float32(residual), axis=1)
    self.assertEqual(own.sum(), 1)
    np.testing.assert_array_equal(
        (one.residual - one.params)[own], dropped.residual[own]
    )

  def test_of_all_clients_is_the_paper(self):
    """Law: a cohort of all clients, and neutral remedies, change no bit."""
    descent = controllers.sign_descent(10, 2, DIM)
    fab = sparsifiers.fab_top_k(plain.fab)
    want, want_infos = play(build(descent, fab), clients_of(), 6)
    got, infos = play(
        build(descent, fab, attendance=some(N)), clients_of(), 6
    )
    for state, other in zip(got, want, strict=True):
      chex.assert_trees_all_equal(
          state.replace(attendance=()), other.replace(attendance=())
      )
    for info, other in zip(infos, want_infos, strict=True):
      # All but what is said of a cohort alone.
      of_cohort = [name for name, x in other._asdict().items() if x is None]
      info = info._replace(**dict.fromkeys(of_cohort))
      chex.assert_trees_all_equal(info, other)

  def test_a_round_of_nobody_changes_time_alone(self):
    """Nobody is on; all drop out; neither gives a number that is not one."""
    nobody = ALL_DAY._replace(off=ALL_DAY.on)
    self.enterContext(jax.debug_nans(True))
    self.enterContext(jax.debug_infs(True))
    for settings, data in (
        ({"stateless": True}, clients_of(availability=nobody)),
        ({"dropout": 1.0}, clients_of(availability=ALL_DAY)),
    ):
      simulated = built(
          some(),
          controller=controllers.sign_descent(10, 2, DIM),
          server=server_of("momentum", RATE),
          **settings,
      )
      state = simulated.init(jax.random.key(0), N)
      # As if there had been rounds before.
      state = state.replace(
          server=jax.tree.map(lambda x: x + 0.5, state.server),
          feedback=jax.tree.map(lambda x: x + 0.5, state.feedback),
      )
      after, info = jitted(simulated.step)(data, state)
      for name in ("params", "server", "feedback"):
        chex.assert_trees_all_equal(getattr(after, name), getattr(state, name))
      self.assertEqual((info.k_up, info.k_down, info.volume_down), (0, 0, 0))
      self.assertEqual(after.seconds[0], clocks.EMPTY_ROUND)
      self.assertEqual(info.heard, 0)

  def test_cafe_with_all_elements_is_sgd(self):
    """Law: b_prev + the mean of all g - b_prev is the mean of all g."""
    of = lambda **settings: play(
        built(
            some(4), sparsifier=METHODS["send_all"].build(), **settings
        ),
        clients_of(),
        5,
    )[0][-1]
    np.testing.assert_allclose(
        of(stateless=True).params, of().params, atol=1e-5
    )


# From when to when each client is on.
HOURS = np.float32([
    [0, 9], [3, 8], [0, 5], [6, 30], [20, 90], [0, 95], [0, 60],
])
BUFFERS = {
    "always": (4, 2, 1, None),
    "alone": (3, 1, 3, None),
    "at_times": (
        4, 3, 9, Availability(HOURS[:, :1], HOURS[:, 1:], np.float32(100))
    ),
}


class AsynchronousTest(parameterized.TestCase):

  @parameterized.named_parameters(
      (name, *values) for name, values in BUFFERS.items()
  )
  def test_as_the_queue_of_events(self, at_work, arrivals, most, availability):
    """Who arrives, with which weights, when; and where it leads."""
    simulated = built(queue(at_work, arrivals, most), ks=KS * 3)
    data = clients_of(availability=availability)
    states, infos = play(simulated, data, 3 * len(KS))
    ks = [int(k) for k in KS * 4]
    events = oracle.Buffer(N, at_work, arrivals)
    volumes, now, staleness, sizes = Volumes(), 0.0, set(), set()
    needed = {}

    def begin(delay):
      """Clients begin at `now` + delay(client)."""
      time = now % 100
      on = range(N)
      if availability is not None:
        on = [i for i in on if HOURS[i, 0] <= time < HOURS[i, 1]]
      # n have begun at first, and K after each step.
      first = 0
      if events.rounds:
        first = at_work + (events.rounds - 1) * arrivals
      order = [(first + i) % N for i in range(N)]
      k, before = ks[events.rounds], set(events.queue)
      events.begin(
          order,
          on,
          lambda client: now + delay(client)
          + seconds_until_sent(client, k, volumes.behind(client)),
      )
      begun = [message.client for message in set(events.queue) - before]
      needed.update({i: volumes.behind(i) for i in begun})
      return begun

    begin(lambda client: 0.0)
    for before, after, info, k in zip(
        states, states[1:], infos, ks, strict=False
    ):
      messages = events.next_messages()
      m = events.rounds
      clients = sorted(message.client for message in messages)
      self.assertEqual([i for i in info.clients if i < N], clients)
      old = {i.client: m - 1 - i.began for i in messages}
      staleness |= set(old.values())
      sizes.add(len(messages))
      want = oracle.play_round(
          federation(),
          before.params,
          before.residual,
          clients,
          clients,
          k,
          old_params={i.client: states[i.began].params for i in messages},
          trust={
              client: (1 + s) ** -0.5 if s <= most else 0.0
              for client, s in old.items()
          },
      )
      ignored = [i for i, s in old.items() if s > most]
      want.residual[ignored] = before.residual[ignored]
      np.testing.assert_allclose(after.params, want.params, atol=1e-5)
      np.testing.assert_allclose(after.residual, want.residual, atol=1e-5)

      # A step ends when all of its clients have the server's message.
      end, back = now + 60.0, 0.0
      if messages:
        back = max(download(i, info.volume_down) for i in clients)
        end = max(now, messages[-1].time) + back
      np.testing.assert_allclose(
          info.timing.duration, end - now, rtol=2e-3, atol=2e-3
      )
      behind = max((needed[i] for i in clients), default=0.0)
      np.testing.assert_allclose(info.behind, behind, rtol=1e-6)
      slowest = messages[-1].client if messages else -1
      self.assertEqual(info.timing.slowest, slowest)
      now = end
      begun = begin(
          lambda client, info=info, back=back: download(
              client, info.volume_down
          ) - back
      )
      volumes.send(float(info.volume_down), begun)
      working = after.attendance.clients
      self.assertCountEqual(
          [i for i in working if i < N], [i.client for i in events.queue]
      )
    self.assertGreater(len(staleness), 1)
    if availability is not None:
      self.assertGreater(len(sizes), 1)

  @parameterized.parameters(
      {}, {"decay": 0.5, "preview": 0.5, "value_bits": 16}
  )
  def test_alike_and_all_are_synchronous_rounds(self, **settings):
    """Law: equal clients and K = N give the same bits, seconds included."""
    descent = controllers.sign_descent(10, 2, DIM)
    (want, want_infos), (got, infos) = (
        play(
            built(attendance, controller=descent, **settings),
            clients_of(ALIKE),
            6,
        )
        for attendance in (some(N), queue(N, N))
    )
    for state, other in zip(got, want, strict=True):
      chex.assert_trees_all_equal(
          state.replace(attendance=()), other.replace(attendance=())
      )
    for info, other in zip(infos, want_infos, strict=True):
      chex.assert_trees_all_equal(info, other)


ATTENDANCES = {
    "all": lambda: None,
    "some": lambda: some(4, "by_size"),
    "queue": lambda: queue(5, 3, 2, "uniform"),
}
RULES = {
    "fixed": lambda: controllers.fixed(7.5),
    "sign": lambda: controllers.sign_interval(9.0, 2.0, float(DIM)),
    "exp3": lambda: controllers.exp3(4, 20, 50, num_arms=5),
}
FEEDBACKS = (
    {}, {"decay": 0.8, "preview": 0.5}, {"dropout": 0.3, "value_bits": 16},
)


# Each method, attendance, rule and feedback, most of them with each other.
CASES = (
    ("fab_top_k", "all", "exp3", 2),
    ("fab_top_k", "queue", "sign", 1),
    ("fub_top_k_tree", "some", "sign", 2),
    ("unidirectional_top_k", "queue", "exp3", 0),
    ("periodic_k", "some", "fixed", 1),
    ("send_all", "queue", "fixed", 2),
)


def pairs():
  """The cases with their names."""
  for method, attendance, rule, number in CASES:
    name = f"{method}_{attendance}_{rule}"
    yield name, method, attendance, rule, FEEDBACKS[number]


class EveryPairTest(parameterized.TestCase):

  @parameterized.named_parameters(*pairs())
  def test_conserves_gradients(self, method, attendance, rule, settings):
    """Law: b is the mean of what left the residuals; rows are finite."""
    simulated = built(
        ATTENDANCES[attendance](),
        controller=RULES[rule](),
        sparsifier=METHODS[method].build(),
        **settings,
    )
    states, infos = play(simulated, clients_of(), 4)
    last = [0] * N
    for m, (before, after, info) in enumerate(
        zip(states, states[1:], infos, strict=False), 1
    ):
      for x in jax.tree.leaves((info, after.params, after.residual)):
        self.assertTrue(np.isfinite(x).all())
      clients = range(N) if info.clients is None else info.clients.tolist()
      clients = [i for i in clients if i < N]
      began = dict.fromkeys(clients, m - 1)
      if attendance == "queue":
        # `after` says who began; those at work before it, when they had.
        earlier = states[m - 1].attendance if m > 1 else None
        for i in clients if earlier is not None else ():
          place = earlier.clients.tolist().index(i)
          began[i] = int(earlier.began[place])
      lost = drops_out(
          states[0].key, m, jnp.int32(clients), settings.get("dropout", 0.0)
      )
      total, mean = 0, np.zeros(DIM)
      for i, is_lost in zip(clients, lost, strict=True):
        e = before.residual[i]
        if "decay" in settings:
          e = e * settings["decay"] ** (m - last[i])
        last[i] = m
        here = states[began[i]].params - settings.get("preview", 0) * RATE * e
        gradient = federation().gradient(i, here)
        age = m - began[i]
        trust = age**-0.5 if age <= 3 else 0.0
        left = e + (gradient if trust else 0.0) - after.residual[i]
        if is_lost or not trust:
          np.testing.assert_allclose(left, np.zeros(DIM), atol=1e-5)
        if not is_lost:
          weight = 1 if attendance == "some" else COUNTS[i]
          total += weight
          mean += weight * trust * left
      b = (before.params - after.params) / RATE
      np.testing.assert_allclose(b * total, mean, atol=1e-3)


if __name__ == "__main__":
  absltest.main()
