// Package suite runs containerd's own snapshotter test suite against a service of ours, through
// containerd's own proxy client.
//
// SUITE_SOCKETS is a directory with one socket per sub-test, each of a store of its own.
// SUITE_MOUNTS is what the service was started with: "lcow" mounts go through an adapter,
// "linux-host" ones are used as they are.
package suite

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

// sockets hands out each socket once: sub-tests run in parallel.
type sockets struct {
	mutex sync.Mutex
	paths []string
}

func (s *sockets) take() (string, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if len(s.paths) == 0 {
		return "", errors.New("more sub-tests than sockets in SUITE_SOCKETS")
	}
	path := s.paths[0]
	s.paths = s.paths[1:]
	return path, nil
}

func TestSnapshotter(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(os.Getenv("SUITE_SOCKETS"), "*.sock"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("SUITE_SOCKETS names no directory with sockets: %v", err)
	}
	sort.Strings(paths)
	free := &sockets{paths: paths}
	mounts := os.Getenv("SUITE_MOUNTS")
	if mounts != "lcow" && mounts != "linux-host" {
		t.Fatalf("SUITE_MOUNTS=%q: want lcow or linux-host", mounts)
	}
	// The suite knows some snapshotters by name; what is said of overlayfs holds for ours.
	testsuite.SnapshotterSuite(t, "overlayfs",
		func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
			path, err := free.take()
			if err != nil {
				return nil, nil, err
			}
			connection, err := grpc.DialContext(ctx, "unix://"+path,
				grpc.WithInsecure(), grpc.WithBlock())
			if err != nil {
				return nil, nil, err
			}
			var snapshotter snapshots.Snapshotter = proxy.NewSnapshotter(
				snapshotsapi.NewSnapshotsClient(connection), "lcow")
			if mounts == "lcow" {
				snapshotter = &adapter{Snapshotter: snapshotter}
			}
			return snapshotter, connection.Close, nil
		})
}
