"""The actor-critic against traces written out by hand, on an environment with a known course."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kfrtrl_jax import control, estimators, readouts
from kfrtrl_jax._src.control import environments
from kfrtrl_jax.learning import make_learner
from tests.helpers.interpreter import evaluated
from tests.trajectories import HIDDEN_SIZE, SMALL_CELLS

LANES, STEPS, ACTIONS, CELL = 2, 5, 3, SMALL_CELLS["vanilla"]
READOUT = readouts.linear(input_size=HIDDEN_SIZE, output_size=ACTIONS + 1, init_scale=0.5)
SETTINGS = control.Settings(discount=0.9, trace_decay=0.8, value_weight=0.5, entropy_weight=0.1)


def course() -> control.Environment:
    """An episode ends with the third action; the reward is the action."""

    def seen(key, time):
        return jnp.where(time == 0, 1.0, jax.random.normal(key, (3,)))

    def init(key):
        return jnp.zeros((), int), seen(key, 0)

    def step(key, time, action):
        time = time + 1
        ended = time == 3
        last = seen(key, time)
        return control.Transition(
            jnp.where(ended, 0, time),
            jnp.where(ended, seen(key, 0), last),
            last,
            1.0 * action,
            ended,
            ended,
        )

    return control.Environment(3, ACTIONS, init, step)


def agent_of(estimator, learning_rate=0.0, **lengths):
    learner = make_learner(
        CELL,
        READOUT,
        estimator,
        optax.sgd(learning_rate),
        batch_size=1,
        example_input=jnp.zeros(3),
        loss=control.objective(SETTINGS),
        **lengths,
    )
    return control.actor_critic(CELL, READOUT, learner, course(), SETTINGS, LANES)


def values(parameters, observations, begins):
    """Logits and value along the observations of a lane."""
    carry, found = CELL.initial_carry(), []
    for x, fresh in zip(observations, begins):
        carry = CELL.initial_carry() if fresh else carry
        carry, output = CELL.step(parameters["cell"], carry, x)
        found.append(READOUT.apply(parameters["readout"], output))
    return found


def test_traces_are_sums_of_exact_gradients():
    agent = agent_of(estimators.rtrl())
    state = evaluated(agent.init, jax.random.key(0))
    start, states, reports = state, [], []
    step = jax.jit(agent.step)
    for _ in range(STEPS):
        states.append(state)
        state, report = step(state)
        reports.append(report)
    begins = np.array([s.begins for s in states])
    np.testing.assert_array_equal(begins[:, 0], [True, False, False, True, False])
    parameters = start.learner.parameters

    for lane in range(LANES):
        observations = np.array([s.observation[lane] for s in states])
        predictions = np.array(values(parameters, observations, begins[:, lane]))
        # Inside an episode, the value that follows is that of the next observation.
        for t in (0, 1, 3):
            before = 0.0 if begins[t, lane] else states[t].returns[lane]
            action = reports[t].returns[lane] - before
            delta = action + SETTINGS.discount * predictions[t + 1, -1] - predictions[t, -1]
            np.testing.assert_allclose(reports[t].error[lane], delta, rtol=1e-10)
        # Nothing follows the end of an episode.
        last = reports[2].returns[lane] - states[2].returns[lane]
        np.testing.assert_allclose(reports[2].error[lane], last - predictions[2, -1], rtol=1e-10)
        assert reports[2].finished[lane]

        def objective(parameters, lane=lane, observations=observations):
            # Only the second episode is in the traces at the end.
            total = 0.0
            for k, prediction in enumerate(values(parameters, observations[3:], begins[3:, lane])):
                before = 0.0 if k == 0 else states[3 + k].returns[lane]
                action = jnp.round(reports[3 + k].returns[lane] - before).astype(int)
                log_policy = jax.nn.log_softmax(prediction[:-1])
                entropy = -jnp.sum(jnp.exp(log_policy) * log_policy)
                weight = SETTINGS.entropy_weight * jnp.sign(reports[3 + k].error[lane])
                own = log_policy[action] + SETTINGS.value_weight * prediction[-1]
                decay = (SETTINGS.discount * SETTINGS.trace_decay) ** (1 - k)
                total -= decay * (own + weight * entropy)
            return total

        expected = evaluated(jax.grad(objective), parameters)
        jax.tree.map(
            lambda got, want, lane=lane: np.testing.assert_allclose(got[lane], want, atol=1e-12),
            state.traces,
            expected,
        )


def test_an_update_is_the_mean_over_lanes_of_errors_times_traces():
    state = evaluated(agent_of(estimators.truncated(), 0.1).init, jax.random.key(0))
    new, report = evaluated(agent_of(estimators.truncated(), 0.1).step, state)
    jax.tree.map(
        lambda after, before, z: np.testing.assert_allclose(
            after, before - 0.1 * np.einsum("b,b...->...", report.error, z) / LANES, rtol=1e-10
        ),
        new.learner.parameters,
        state.learner.parameters,
        new.traces,
    )


def test_gymnax_environments_are_what_their_parameters_say():
    pytest.importorskip("gymnax")
    chain = control.from_gymnax("MemoryChain-bsuite", parameters="memory_length=2")
    assert (chain.observation_size, chain.num_actions) == (3, 2)
    state, observation = chain.init(jax.random.key(0))
    cue = observation[2]
    rewards, ends = [], []
    step = jax.jit(chain.step)
    for _ in range(3):
        transition = step(jax.random.key(1), state, jnp.asarray((cue > 0).astype(int)))
        state = transition.state
        rewards.append(float(transition.reward))
        ends.append(bool(transition.terminated))
    assert rewards == [0, 0, 1]
    assert ends == [False, False, True]
    assert control.from_gymnax("CartPole-v1", observed=(0, 2)).observation_size == 2


@pytest.mark.parametrize("ramping", [True, False])
def test_a_parameter_that_is_true_or_false_can_be_either(ramping):
    gymnax = pytest.importorskip("gymnax")
    _, defaults = gymnax.make("Asterix-MinAtar")
    assert environments._replaced(defaults, f"ramping={ramping}", "").ramping is ramping


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("CartPol-v1",), "no environment 'CartPol-v1'; did you mean CartPole-v1"),
        (("CartPole-v1", {"parameters": "mass=1"}), "no parameter 'mass'; it has .*gravity"),
        (("CartPole-v1", {"parameters": "gravity=x"}), "gravity must be float, got 'x'"),
        (
            ("Asterix-MinAtar", {"parameters": "ramping=no"}),
            "ramping must be True or False, got 'no'",
        ),
        (("CartPole-v1", {"observed": (0, 4)}), "of 4 entries, there is no entry 4"),
        (("Pendulum-v1",), "actions of Pendulum-v1 are not finitely many"),
    ],
)
def test_an_unknown_environment_is_one_line(arguments, message):
    pytest.importorskip("gymnax")
    name, *rest = arguments
    with pytest.raises(ValueError, match=message) as error:
        control.from_gymnax(name, **(rest[0] if rest else {}))
    assert "\n" not in str(error.value)
