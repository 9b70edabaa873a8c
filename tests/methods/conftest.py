"""Runs that several tests compare with."""

import pytest

import optax_sam
from tests.methods.small import train, train_base


@pytest.fixture(scope="session")
def sgd_run():
    return train_base()


@pytest.fixture(scope="session")
def sam_run():
    return train(optax_sam.sam(rho=0.1), options=None)
