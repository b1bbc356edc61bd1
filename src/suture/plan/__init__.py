"""Bindings × options → Plan. Pure."""

from suture.plan.build import Draft, Identity, build_plan, draft_operations
from suture.plan.ties import settle

__all__ = ["Draft", "Identity", "build_plan", "draft_operations", "settle"]
