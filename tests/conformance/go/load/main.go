// Load puts work on a snapshots service and prints what it took as one JSON document. The service
// is a snapshotter's own socket, or containerd's, which names one of several.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"google.golang.org/grpc"
)

type work struct {
	snapshotter snapshots.Snapshotter
	clients     int
	count       int
	depth       int
	filters     []string
	prefix      string
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run() error {
	socket := flag.String("socket", "", "path of the socket")
	name := flag.String("snapshotter", "", "for containerd's socket: which snapshotter")
	clients := flag.Int("clients", 1, "how many at the same time")
	count := flag.Int("count", 1, "how often each of them")
	depth := flag.Int("depth", 5, "chain: layers of each")
	prefix := flag.String("prefix", "load", "how keys begin")
	flag.Parse()
	operations := map[string]func(context.Context, *work, int, int) error{
		"chain": chain, "fill": fill, "list": list,
	}
	operation, known := operations[flag.Arg(0)]
	if !known {
		return fmt.Errorf("no operation %q", flag.Arg(0))
	}
	ctx := namespaces.WithNamespace(context.Background(), "bench")
	connection, err := grpc.DialContext(ctx, "unix://"+*socket,
		grpc.WithInsecure(), grpc.WithBlock())
	if err != nil {
		return err
	}
	defer connection.Close()
	w := &work{
		snapshotter: proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), *name),
		clients:     *clients, count: *count, depth: *depth, prefix: *prefix,
		filters: flag.Args()[1:],
	}
	began := time.Now()
	if err := all(ctx, w, operation); err != nil {
		return err
	}
	took := time.Since(began)
	return json.NewEncoder(os.Stdout).Encode(map[string]float64{"seconds": took.Seconds()})
}

// all runs the operation count times in each of the clients, and returns what failed.
func all(ctx context.Context, w *work, operation func(context.Context, *work, int, int) error) error {
	failures := make([]error, w.clients)
	var group sync.WaitGroup
	for client := 0; client < w.clients; client++ {
		group.Add(1)
		go func(client int) {
			defer group.Done()
			for round := 0; round < w.count && failures[client] == nil; round++ {
				failures[client] = operation(ctx, w, client, round)
			}
		}(client)
	}
	group.Wait()
	for _, err := range failures {
		if err != nil {
			return err
		}
	}
	return nil
}

// keep holds containerd's garbage collector off; a snapshotter of its own ignores it.
var keep = map[string]string{"containerd.io/gc.root": "bench"}

// chain prepares and commits layers on top of each other, and removes them from the top.
func chain(ctx context.Context, w *work, client, round int) error {
	parent := ""
	names := make([]string, 0, w.depth)
	for layer := 0; layer < w.depth; layer++ {
		name := fmt.Sprintf("%s-%d-%d-%d", w.prefix, client, round, layer)
		key := "extract-" + name
		if _, err := w.snapshotter.Prepare(ctx, key, parent, snapshots.WithLabels(keep)); err != nil {
			return err
		}
		if err := w.snapshotter.Commit(ctx, name, key, snapshots.WithLabels(keep)); err != nil {
			return err
		}
		names = append(names, name)
		parent = name
	}
	for layer := w.depth - 1; layer >= 0; layer-- {
		if err := w.snapshotter.Remove(ctx, names[layer]); err != nil {
			return err
		}
	}
	return nil
}

// fill leaves one snapshot with a label that one in a hundred shares.
func fill(ctx context.Context, w *work, client, round int) error {
	number := client*w.count + round
	labels := map[string]string{"containerd.io/snapshot/shard": fmt.Sprint(number % 100)}
	_, err := w.snapshotter.Prepare(ctx, fmt.Sprintf("extract-%s-%d", w.prefix, number), "",
		snapshots.WithLabels(labels))
	return err
}

// list walks what the filters match, and wants to see at least one snapshot.
func list(ctx context.Context, w *work, _, _ int) error {
	seen := 0
	err := w.snapshotter.Walk(ctx, func(context.Context, snapshots.Info) error {
		seen++
		return nil
	}, w.filters...)
	if err == nil && seen == 0 {
		return errors.New("the filters match nothing")
	}
	return err
}
