package suite

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/containerd/mount"
	"github.com/containerd/containerd/snapshots"
)

const parentsOption = "parentLayerPaths="

// adapter turns the lcow-layer mounts of a snapshotter into mounts that Linux has, so that the
// suite can look into them: each snapshot's files are in fs/ of its directory, and the order of
// the parents, the mode and the source are those that the snapshotter gave.
type adapter struct {
	snapshots.Snapshotter
}

func (a *adapter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := a.Snapshotter.Prepare(ctx, key, parent, opts...)
	if err != nil {
		return nil, err
	}
	return adapt(mounts)
}

func (a *adapter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := a.Snapshotter.View(ctx, key, parent, opts...)
	if err != nil {
		return nil, err
	}
	return adapt(mounts)
}

func (a *adapter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	mounts, err := a.Snapshotter.Mounts(ctx, key)
	if err != nil {
		return nil, err
	}
	return adapt(mounts)
}

func adapt(mounts []mount.Mount) ([]mount.Mount, error) {
	if len(mounts) != 1 || mounts[0].Type != "lcow-layer" || len(mounts[0].Options) != 2 {
		return nil, fmt.Errorf("not one lcow-layer mount with two options: %v", mounts)
	}
	mode, source := mounts[0].Options[0], filepath.Join(mounts[0].Source, "fs")
	var parents []string
	if !strings.HasPrefix(mounts[0].Options[1], parentsOption) {
		return nil, fmt.Errorf("no %s in %v", parentsOption, mounts)
	}
	raw := strings.TrimPrefix(mounts[0].Options[1], parentsOption)
	if err := json.Unmarshal([]byte(raw), &parents); err != nil {
		return nil, err
	}
	for i := range parents {
		parents[i] = filepath.Join(parents[i], "fs")
	}
	if err := makeUpper(source, parents); err != nil {
		return nil, err
	}
	if len(parents) == 0 {
		return []mount.Mount{{Type: "bind", Source: source, Options: []string{mode, "rbind"}}}, nil
	}
	if mode == "ro" {
		lower := "lowerdir=" + strings.Join(append([]string{source}, parents...), ":")
		return []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"ro", lower}}}, nil
	}
	work := filepath.Join(mounts[0].Source, "work")
	if err := os.MkdirAll(work, 0o700); err != nil {
		return nil, err
	}
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{
		"index=off", "workdir=" + work, "upperdir=" + source, "lowerdir=" + strings.Join(parents, ":"),
	}}}, nil
}

// makeUpper makes a directory that looks like the root of the nearest parent.
func makeUpper(path string, parents []string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		if os.IsExist(err) {
			return nil
		}
		return err
	}
	if len(parents) == 0 {
		return nil
	}
	info, err := os.Stat(parents[0])
	if err != nil {
		return err
	}
	status := info.Sys().(*syscall.Stat_t)
	if err := os.Chown(path, int(status.Uid), int(status.Gid)); err != nil {
		return err
	}
	return os.Chmod(path, info.Mode())
}
