# SPDX-License-Identifier: Apache-2.0
"""Tuning with MetaSchedule, at the open lists that a network's gates produce on real images."""
