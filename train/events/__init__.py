"""Events between optimiser steps."""
